"""Images: decoding to pixels, crops for training and evaluation, stored forms."""
