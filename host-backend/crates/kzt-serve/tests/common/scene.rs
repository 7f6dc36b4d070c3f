// SPDX-License-Identifier: GPL-2.0-or-later
//! An attacker and a victim on one server.

use super::driver::{Driver, OK, USUAL};
use super::{Lab, noise};

const MIB: u64 = 1 << 20;

/// What an attacker does, by a name.
pub type Case<'a> = (&'a str, &'a dyn Fn(&Scene) -> Driver);

/// A server with two clients.
pub struct Scene {
    pub lab: Lab,
}

impl Scene {
    pub fn new() -> Self {
        let lab = Lab::new(64 * MIB);
        lab.add("attacker", 16 * MIB);
        lab.add("victim", 16 * MIB);
        assert_eq!(lab.nbd("victim").write(0, &noise(1)), 0);
        assert_eq!(lab.nbd("attacker").write(0, &noise(2)), 0);
        Self { lab }
    }

    pub fn connect(&self) -> Driver {
        Driver::connect(&self.lab.socket("attacker.vhost"))
    }

    pub fn ready(&self) -> Driver {
        Driver::ready(&self.lab.socket("attacker.vhost"), 1)
    }

    /// A driver that has done all but start its queue.
    pub fn shaped(&self) -> Driver {
        let mut driver = self.connect();
        driver.negotiate(USUAL);
        driver.share();
        driver.shape(0, 0);
        driver
    }

    /// The victim's pages and the attacker's own former ones are there, and both are served.
    pub fn unharmed(&self) {
        assert_eq!(self.lab.nbd("victim").read(0, 4096).unwrap(), noise(1));
        let mut again = self.ready();
        assert_eq!(again.read(0, 4096).unwrap(), noise(2));
        assert_eq!(again.write(1 << 20, &noise(3)), Some(OK));
    }
}

/// Each case ends the connection.
pub fn each_ends(cases: &[Case<'_>]) {
    let scene = Scene::new();
    for (name, case) in cases {
        println!("{name}"); // shown when it fails, or hangs and is interrupted
        let driver = case(&scene);
        driver.wait_for_the_end();
        drop(driver);
        scene.unharmed();
    }
}
