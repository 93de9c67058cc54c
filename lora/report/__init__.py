"""Reports: tables, claims, figures and the page, from records."""
