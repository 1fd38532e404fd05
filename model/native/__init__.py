"""What a CPU does for every token, in C++ that is compiled where it runs."""
