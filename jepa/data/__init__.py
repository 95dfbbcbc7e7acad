"""Data: readers of real formats, generators, tokenizers, and the batches that training takes."""

from jepa.data.batches import PairBatch, PairBatches
from jepa.data.chat import ChatIds, ChatTokenizer
from jepa.data.clips import ClipBatch, ClipBatches, StateBatches, StoredClips
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifest_batches import ManifestBatches, Prompts
from jepa.data.manifests import CaptionSample, ClassSample, QuestionSample, Sample, WorldPredictionSample, read_manifest
from jepa.data.media import Media, read_clip
from jepa.data.packing import Layout, PackedBatch, pack
from jepa.data.pairs import Example, ExampleSplits, chat_files, column_files, hugging_face, nlrx, read_chat, split_pairs
from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.data.records import Event, StreamRecord, read_records, write_records
from jepa.data.regex_grammar import Expression, Rule
from jepa.data.shards import ShardBatches, Shards, write_shards
from jepa.data.timelines import Annotation, Excerpt, Timeline, read_timeline
from jepa.data.tokenizer import Tokenizer
from jepa.data.video import VideoFile, VideoStream
from jepa.data.world import Question, Scene, Span, Stream, StreamStyle, World
from jepa.data.world_tasks import world_samples

__all__ = [
    "Annotation", "CaptionSample", "ChatIds", "ChatTokenizer", "ClassSample", "ClipBatch", "ClipBatches",
    "ClipReader", "Event", "Example", "ExampleSplits", "Excerpt", "Expression", "Features", "Layout",
    "ManifestBatches", "Media", "PackedBatch", "PairBatch", "PairBatches", "PretrainedTokenizer", "Prompts",
    "Question", "QuestionSample", "Rule", "Sample", "Scene", "ShardBatches", "Shards", "Span", "StateBatches",
    "StoredClips", "Stream",
    "StreamRecord", "StreamStyle", "Timeline", "Tokenizer", "VideoFile", "VideoStream", "World",
    "WorldPredictionSample", "chat_files", "column_files", "hugging_face", "nlrx", "pack", "read_chat", "read_clip",
    "read_manifest", "read_records", "read_timeline", "split_pairs", "world_samples", "write_features",
    "write_records", "write_shards",
]  # fmt: skip
