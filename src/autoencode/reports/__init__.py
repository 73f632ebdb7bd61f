"""Pages a person reads: a run, and the whole paper. They train and apply models through the layers below."""
