"""Draws oriented boxes."""

from typing import List, Optional, Sequence

import numpy as np
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import _get_adaptive_scales, get_palette
from mmengine.structures import InstanceData

from mmextra.ops.rotated import oriented_corners
from mmextra.registry import VISUALIZERS


@VISUALIZERS.register_module()
class OrientedLocalVisualizer(DetLocalVisualizer):
    """mmdet's visualizer for oriented boxes (cx, cy, w, h, angle), drawn as polygons.

    Takes the arguments of :class:`mmdet.visualization.DetLocalVisualizer`.
    """

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: Optional[Sequence[str]],
        palette: Optional[List[tuple]],
    ) -> np.ndarray:
        """Draw the boxes of one image, each with its class and score; returns the picture, RGB."""
        self.set_image(image)
        if 'bboxes' not in instances or len(instances) == 0:
            return self.get_image()
        boxes, labels = get_box_tensor(instances.bboxes).detach().cpu(), instances.labels.tolist()
        if boxes.shape[-1] != 5:
            raise ValueError(
                f'OrientedLocalVisualizer draws boxes of five numbers, got {boxes.shape[-1]}: use '
                'DetLocalVisualizer for horizontal ones'
            )
        count = max(labels) + 1
        colors = get_palette(palette if self.bbox_color is None else self.bbox_color, count)
        text_colors = get_palette(self.text_color, count)
        corners = oriented_corners(boxes).numpy()
        self.draw_polygons(
            list(corners),
            edge_colors=[colors[label] for label in labels],
            alpha=self.alpha,
            line_widths=self.line_width,
        )
        scales = _get_adaptive_scales((boxes[:, 2] * boxes[:, 3]).numpy())
        for i, label in enumerate(labels):
            text = classes[label] if classes is not None else f'class {label}'
            if 'scores' in instances:
                text += f': {100 * float(instances.scores[i]):.1f}'
            top = corners[i][corners[i][:, 1].argmin()]
            self.draw_texts(
                text,
                top,
                colors=text_colors[label],
                font_sizes=int(13 * scales[i]),
                bboxes=[dict(facecolor='black', alpha=0.8, pad=0.7, edgecolor='none')],
            )
        return self.get_image()
