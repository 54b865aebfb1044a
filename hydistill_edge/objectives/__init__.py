"""Loss terms: pure functions, one idea a file."""
