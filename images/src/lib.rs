// SPDX-License-Identifier: Apache-2.0
//! Base images in, trees and archives out.

pub mod tree;
