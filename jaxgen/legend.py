"""The one alphabet of axes: weights carry it in their names, einsums speak it.

B batch        T query position   S key position (cache slot)
D model width  N query heads      K key/value heads    G = N / K heads that share one key
H head width   F feed-forward     V vocabulary         E experts    L layers
C classes      R relative distances Y token types  Z latents
W convolution window   X its columns        M mel bins, colours
P residual streams     Q pairs of streams
"""

LEGEND = {
    "B": "batch",
    "T": "query position",
    "S": "key position",
    "D": "model width",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads per key/value head",
    "H": "head width",
    "F": "feed-forward width",
    "V": "vocabulary",
    "E": "experts",
    "L": "layers",
    "C": "classes",
    "R": "relative distances",
    "Y": "token types",
    "Z": "latents",
    "W": "convolution window",
    "X": "columns of a convolution window",
    "M": "mel bins or colours",
    "P": "residual streams",
    "Q": "pairs of residual streams",
}
