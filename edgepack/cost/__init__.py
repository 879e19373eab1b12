"""What a layer costs: measured, counted under emulation, or by a roofline; and its bytes."""
