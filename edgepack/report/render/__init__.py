"""A report as text for a terminal, as markdown, as CSV and as JSON: the only places where figures become words."""
