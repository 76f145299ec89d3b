"""The paper's tables and figures, from finished cells' rows and published numbers; nothing is trained in here."""
