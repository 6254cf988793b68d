def all_gather(*arguments, **named):
    raise RuntimeError("flash_attn is a stand-in here")
