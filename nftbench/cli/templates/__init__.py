"""The files that `nftbench new` writes. They are plugins as they are, read as text and imported by no verb.

`my_defense` in a file stands for the name of the new plugin, `MyDefense` for its class, `My defense` for its title.
"""
