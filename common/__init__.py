"""What every room needs: user errors, config files and command lines, crash-safe files, CPU threads."""
