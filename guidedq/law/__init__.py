"""The law of post-training quantization: what a width costs, as a function of bits, parameters and training tokens."""
