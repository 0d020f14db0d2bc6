"""How an image is made of a checkout: a module for each builder, which `builder` chooses among."""
