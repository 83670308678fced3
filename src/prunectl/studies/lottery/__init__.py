"""The ``lottery`` verb: is a ticket that was trained for better than one-shot pruning?"""
