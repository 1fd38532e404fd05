"""What makes a text worth keeping: measures of every document, and rules over them."""
