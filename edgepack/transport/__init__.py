"""Transport: codes of weights on the wire, smaller than in the model file that they are unpacked to."""
