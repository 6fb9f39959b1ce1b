"""The alphabets of OMNIGLOT, named as its published folders (Lake et al. 2015)."""

ALPHABETS = tuple(
    """
    Alphabet_of_the_Magi Angelic Anglo-Saxon_Futhorc Arcadian Armenian
    Asomtavruli_(Georgian) Atemayar_Qelisayer Atlantean Aurek-Besh Avesta Balinese Bengali
    Blackfoot_(Canadian_Aboriginal_Syllabics) Braille Burmese_(Myanmar) Cyrillic
    Early_Aramaic Futurama Ge_ez Glagolitic Grantha Greek Gujarati Gurmukhi Hebrew
    Inuktitut_(Canadian_Aboriginal_Syllabics) Japanese_(hiragana) Japanese_(katakana)
    Kannada Keble Korean Latin Malay_(Jawi_-_Arabic) Malayalam Manipuri Mkhedruli_(Georgian)
    Mongolian N_Ko Ojibwe_(Canadian_Aboriginal_Syllabics) Old_Church_Slavonic_(Cyrillic)
    Oriya Sanskrit Sylheti Syriac_(Estrangelo) Syriac_(Serto) Tagalog Tengwar Tibetan
    Tifinagh ULOG
    """.split()  # noqa: SIM905
)
"""In the order of their numbers in `omniglot28.mat`, which is alphabetical."""
