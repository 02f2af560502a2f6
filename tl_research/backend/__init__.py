"""The only room that imports TensorFlow."""
