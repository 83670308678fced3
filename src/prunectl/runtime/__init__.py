"""Run models whose weights stay compressed in memory and are decoded inside each product.

Decoding a token waits for weights to come from memory, so fewer bytes take less time. A pruned
weight is kept in a *form* (``forms.py``): its zeros are neither stored nor fetched. Products with
few input rows decode each weight once, in registers; products with many decode panels of rows into
the cache and multiply them by torch.
"""
