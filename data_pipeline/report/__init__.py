"""What curation did, for people: report.html, its figures and a dataset card, drawn from a dataset's own files."""
