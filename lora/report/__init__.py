"""From records to tables, claims, figures and the page."""
