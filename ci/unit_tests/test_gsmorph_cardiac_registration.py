# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import os
import shutil
import sys
import tempfile
import unittest

from monai.bundle import ConfigWorkflow
from utils import check_workflow

BUNDLE_ROOT = "models/gsmorph_cardiac_registration"
SMALL = {"max_epochs": 1, "val_interval": 1, "batch_size": 2, "slice_size": [32, 32], "crop_size": [32, 32]}


def test_order(test_name1, test_name2):
    def get_order(name):
        return next((i for i, part in enumerate(("train", "finetune", "infer")) if part in name), 3)

    return get_order(test_name1) - get_order(test_name2)


class TestGSMorphCardiacRegistration(unittest.TestCase):
    def setUp(self):
        sys.path.insert(0, os.path.abspath(BUNDLE_ROOT))
        from scripts.cardiac.phantom import write_phantom_dataset

        self.folder = tempfile.mkdtemp()
        self.dataset_dir = os.path.join(self.folder, "data")
        write_phantom_dataset(self.dataset_dir, 5, size=(40, 36), slices=2, frames=4, progress=False)

    def tearDown(self):
        shutil.rmtree(self.folder)
        sys.path.remove(os.path.abspath(BUNDLE_ROOT))

    def check(self, workflow_type, names, output, **override):
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=[os.path.join(BUNDLE_ROOT, "configs", f"{name}.yaml") for name in names],
            logging_file=os.path.join(BUNDLE_ROOT, "configs/logging.conf"),
            meta_file=os.path.join(BUNDLE_ROOT, "configs/metadata.json"),
            bundle_root=BUNDLE_ROOT,
            dataset_dir=self.dataset_dir,
            output_dir=os.path.join(self.folder, output),
            **override,
        )
        check_workflow(workflow, check_properties=True)
        return sorted(os.listdir(os.path.join(self.folder, output)))

    def test_train_eval_config(self):
        self.assertIn("model.pt", self.check("train", ["train"], "trained", cache_dir=False, **SMALL))
        weights = os.path.join(self.folder, "trained", "model.pt")
        files = self.check("train", ["train", "evaluate"], "scores", checkpoint=weights, crop_size=[32, 32])
        self.assertIn("metrics.csv", files)

    def test_finetune_config(self):
        files = self.check("train", ["train", "finetune"], "tuned", cache_dir=False, **{**SMALL, "batch_size": 8})
        self.assertIn("model.pt", files)

    def test_infer_config(self):
        self.assertIn("phantom001", self.check("infer", ["inference"], "registered", write="moved"))


if __name__ == "__main__":
    loader = unittest.TestLoader()
    loader.sortTestMethodsUsing = test_order
    unittest.main(testLoader=loader)
