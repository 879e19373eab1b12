"""What a program calls: models, samples and progress as Python has them; everything else is below."""
