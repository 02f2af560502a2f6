"""Data sets fetched from Kaggle, and archives unpacked safely."""
