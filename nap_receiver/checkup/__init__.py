"""What `nap doctor` looks at: a function for each check, and what they look at, listed once for all of them."""
