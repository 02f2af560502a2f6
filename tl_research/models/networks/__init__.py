"""Networks of our own, called like the constructors of keras.applications."""
