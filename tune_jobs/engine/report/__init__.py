"""What a sweep found: winner, its test, files, summary."""
