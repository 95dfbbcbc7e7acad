"""VL-JEPAs for use without this package's training: graphs of each role, with a proof that they say the same."""

from jepa.export.graphs import Graph, graphs_of
from jepa.export.parity import Parity, RoleParity, measure_parity
from jepa.export.write import TorchExportModel, export_graphs

__all__ = ["Graph", "Parity", "RoleParity", "TorchExportModel", "export_graphs", "graphs_of", "measure_parity"]
