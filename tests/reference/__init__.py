# SPDX-License-Identifier: Apache-2.0
"""NumPy oracle of the stored format and of attention on it; see tqkv_reference.py."""
