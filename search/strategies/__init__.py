"""Search methods by name. A method is one short file that fills the slots of its loop."""

from . import (
    amended_darts,
    bn_nas,
    darts,
    darts_plus,
    darts_second,
    dcp_nas,
    di_nas,
    fairnas,
    gdas,
    one_shot,
    random_search,
    snas,
    spos,
)

STRATEGIES = {
    "random": random_search,
    "one-shot": one_shot,
    "spos": spos,
    "fairnas": fairnas,
    "bn-nas": bn_nas,
    "di-nas": di_nas,
    "darts": darts,
    "darts-second": darts_second,
    "amended-darts": amended_darts,
    "darts-plus": darts_plus,
    "gdas": gdas,
    "snas": snas,
    "dcp-nas": dcp_nas,
}
