"""A study's report: one HTML page that holds everything and loads nothing. Each module prepares a part of it as plain
data; the page is templates/*.jinja and style.css."""
