"""Preparation of a data set: labelled images from any source become shards and a manifest."""
