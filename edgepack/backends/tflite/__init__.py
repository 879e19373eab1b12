"""TFLite files, and LiteRT."""
