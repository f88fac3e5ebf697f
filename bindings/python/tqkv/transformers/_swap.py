# SPDX-License-Identifier: Apache-2.0
"""Rows of a Store in host memory: what TurboCache.swap_out takes off the device, byte for byte, and what the
next call that needs it brings back."""
import torch


class Swapped:
    """A copy of the rows; they may be freed once it is made.

    config   of the cache that they came from, for one like it
    """

    def __init__(self, cache, rows, device, stream):
        self.config, self._parts = cache.config, []
        for row in rows:
            if len(row) == 0:
                self._parts.append(None)
                continue
            room = torch.empty(cache.describe_sequence(row).bytes, dtype=torch.uint8,
                               pin_memory=device.type == "cuda")
            self._parts.append(cache.export_sequence(row, room, stream=stream))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    @property
    def bytes(self):
        return sum(part[1].numel() for part in self._parts if part is not None)

    def rows(self, cache, stream):
        """The rows again, of a cache of equal identity: all or none of them."""
        made = []
        try:
            for part in self._parts:
                made.append(cache.sequence() if part is None else cache.import_sequence(*part, stream=stream))
        except BaseException:
            for row in made:
                row.free(stream=stream)
            raise
        return made
