"""One distillation method a file."""
