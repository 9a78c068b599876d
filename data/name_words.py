"""The words of a file's name."""

import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")


def _listed(words: str) -> set[str]:
    return set(words.split())


# what says so anywhere in a name, in small letters
MASKS = _listed(
    "mask masks seg segs segm segmentation segmentations labels labelmap labelmaps groundtruth "
    "annotation annotations annot anno superpixels thumbnail thumbnails"
)
# where nothing but usual words stands beside it
PERHAPS_MASKS = _listed("label gt manual thumb thumbs")
PLACES = _listed(  # say nothing of what is in a folder
    "image images img imgs photo photos picture pictures frame frames scan scans slice slices "
    "volume volumes sample samples file files data dataset set sets split part fold stage task "
    "input inputs raw orig original new full all the fine coarse jpg "
    "jpeg png tif a b"
)
SPLIT_NAMES = {  # of folders that are taken for splits
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_WORDS = {  # of those that are asked about
    **SPLIT_NAMES,
    **dict.fromkeys(("trainval", "development", "trn", "训练", "训练集"), "train"),
    **dict.fromkeys(("验证", "验证集"), "validation"),
    **dict.fromkeys(("holdout", "eval", "evaluation", "tst", "测试", "测试集"), "test"),
}
SHORT = {"tr": "train", "vl": "validation", "ts": "test", "te": "test"}  # beside another word
GLUED = re.compile(  # trainset, testimages
    rf"({'|'.join(sorted(PLACES, key=len, reverse=True))})??"
    r"(training|train|valid|val|testing|test)"
    r"(set|sets|data|images|imgs|img|samples)?"
)


def words_of(name: str) -> list[str]:
    """In small letters, at _ - . space and where a capital or a number begins: "labelsTr_02" is
    labels, tr, 02; ground truth is one word."""
    words = " ".join(map(str.lower, WORD.findall(name)))
    return re.sub(r"\bground truth\b", "groundtruth", words).split()


def stem_of(name: str) -> str:
    """A file's name without folders and suffixes."""
    return re.sub(r"(\.nii)?\.\w+$", "", name.rpartition("/")[2])


def split_word(word: str) -> str | None:
    """The split that a word says, also as in trainset."""
    glued = GLUED.fullmatch(word)
    return SPLIT_WORDS.get(glued[2] if glued else word)


def split_said_by(folder: str) -> tuple[str, str] | None:
    """The split that a folder's name says in any spelling (train_images, imagesTr, "Test Set",
    val2017), and what else it says: "" or, of lungs_train, lungs."""
    words = [word for word in words_of(folder) if not word.isdecimal()]
    known = {word: split_word(word) or (len(words) > 1 and SHORT.get(word)) for word in words}
    said = {split for split in known.values() if split}
    others = {word for word, split in known.items() if not split}
    if not said:
        return None
    rest = " ".join(sorted(others - PLACES - MASKS - PERHAPS_MASKS))
    return "train" if "train" in said else said.pop(), rest
