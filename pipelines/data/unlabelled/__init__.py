"""Images to be classified, wherever they lie: files, a data set of ours, any Parquet with an image column."""
