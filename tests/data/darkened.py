"""What stands in for a purifier where torch is not needed: images come out half as light."""

import numpy as np


class Darkened:
    """Those with an id in `refused` come out as NaN; with `grown` all are twice as large. `seen` lists the ids."""

    def __init__(self, refused=(), grown=False):
        self.refused, self.grown, self.seen = refused, grown, []

    def start(self, images, ids):
        self.seen += ids.tolist()
        out = images.astype(np.float32) / (2 * (255 if images.dtype == np.uint8 else 1))
        out[np.isin(ids, list(self.refused))] = np.nan
        return out.repeat(2, 2).repeat(2, 3) if self.grown else out

    def finish(self, started):
        return started

    def is_out_of_memory(self, error):
        return False

    def identity(self):
        return {"weights": "darkened"}
