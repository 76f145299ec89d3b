"""What the commands show: tables for a terminal, and JSON."""
