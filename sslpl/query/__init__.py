"""Query strategies, one per file, and the scorers and selectors that `score_then_select` combines."""

from sslpl.query.active_ft import active_ft
from sslpl.query.alfa_mix import alfa_mix
from sslpl.query.badge import badge
from sslpl.query.bait import bait
from sslpl.query.bait_binary import bait_binary
from sslpl.query.bald import bald, dropout_entropy, mean_std, variation_ratio
from sslpl.query.batch_bald import batch_bald
from sslpl.query.boss import boss
from sslpl.query.class_balanced_random import class_balanced_random
from sslpl.query.class_stratified import class_stratified
from sslpl.query.cluster_margin import cluster_margin
from sslpl.query.consistency import consistency
from sslpl.query.core_gcn import core_gcn
from sslpl.query.core_set import core_set
from sslpl.query.dropquery import dropquery
from sslpl.query.ensemble import ensemble
from sslpl.query.expected_gradient_length import expected_gradient_length
from sslpl.query.expected_reduction import expected_reduction
from sslpl.query.greedy_oracle import greedy_oracle
from sslpl.query.kmeans import kmeans
from sslpl.query.max_herding import max_herding
from sslpl.query.probcover import probcover
from sslpl.query.query_by_committee import query_by_committee
from sslpl.query.random import random
from sslpl.query.refine import refine
from sslpl.query.score_then_query import score_then_query
from sslpl.query.score_then_select import score_then_select
from sslpl.query.scorers import entropy, expected_loss, least_confidence, margin, predicted_loss, ratio
from sslpl.query.selective_clustering import selective_clustering
from sslpl.query.selectors import power, top
from sslpl.query.ta_vaal import ta_vaal
from sslpl.query.tcm import tcm
from sslpl.query.temporal_output_discrepancy import temporal_output_discrepancy
from sslpl.query.typiclust import typiclust
from sslpl.query.uherding import uherding
from sslpl.query.uncertain_gcn import uncertain_gcn
from sslpl.query.vaal import vaal

__all__ = [
    "active_ft",
    "alfa_mix",
    "badge",
    "bait",
    "bait_binary",
    "bald",
    "batch_bald",
    "boss",
    "class_balanced_random",
    "class_stratified",
    "cluster_margin",
    "consistency",
    "core_gcn",
    "core_set",
    "dropout_entropy",
    "dropquery",
    "ensemble",
    "entropy",
    "expected_gradient_length",
    "expected_loss",
    "expected_reduction",
    "greedy_oracle",
    "kmeans",
    "least_confidence",
    "margin",
    "max_herding",
    "mean_std",
    "power",
    "predicted_loss",
    "probcover",
    "query_by_committee",
    "random",
    "ratio",
    "refine",
    "score_then_query",
    "score_then_select",
    "selective_clustering",
    "ta_vaal",
    "tcm",
    "temporal_output_discrepancy",
    "top",
    "typiclust",
    "uherding",
    "uncertain_gcn",
    "vaal",
    "variation_ratio",
]
