"""Pure maths of the project: tensors and floats in, tensors out. Imports torch alone."""
