"""Pure audio: arrays and files in, arrays and files out. No Ray, no AWS, no network.

Every array of samples is ``(frames, channels)``. Functions never change their input, and no
result depends on the size of the blocks in which a file is read.
"""
