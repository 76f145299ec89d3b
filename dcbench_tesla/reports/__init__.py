"""Tables, figures and the report: from stored rows only."""
