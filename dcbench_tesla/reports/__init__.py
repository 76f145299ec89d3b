"""The paper's tables and figures and the HTML report, made from rows and published numbers without any training."""
