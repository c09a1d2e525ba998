"""The admin plane: what people and the console may ask and order, on a Unix socket."""
