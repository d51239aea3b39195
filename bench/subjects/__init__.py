"""What is measured: cases of ops, networks, guided steps, purifications."""
