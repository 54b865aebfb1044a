"""Images that did not exist before."""
