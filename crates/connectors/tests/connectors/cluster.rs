use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_connectors::postgres::{
    Cluster, ClusterError, ClusterOptions, FileError, PostgresTarget, ServerBinaries, StopMode, probe,
};

use crate::server::{Server, extra_dirs, majors, oldest, options, passable_dir};

#[test]
fn a_server_of_every_version_starts_and_dies_with_its_cluster() {
    for binaries in majors() {
        let major = binaries.major;
        let server = Server::start(binaries);
        assert_eq!(probe(&server.target("postgres")).unwrap().server_major, major);
        let pid = server.cluster.pid().unwrap();
        assert!(is_running(pid));
        drop(server);
        assert!(!is_running(pid), "the server of version {major} outlived its cluster");
    }
}

#[test]
fn a_cluster_keeps_its_data_over_a_stop_and_listens_on_a_port_with_a_password() {
    let dir = passable_dir();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = ClusterOptions {
        superuser: "catalog".to_owned(),
        password: Some("p@ss:w\\rd".to_owned()),
        port: Some(port),
        fsync: true,
        settings: vec![("max_connections".to_owned(), "17".to_owned())],
        ..options(dir.path().join("socket"))
    };
    let mut cluster = Cluster::create(oldest(), &dir.path().join("data"), options.clone()).unwrap();
    cluster.start().unwrap();
    let url = cluster.url("postgres").unwrap();
    let psql = |sql: &str| {
        let output = Command::new(oldest().program("psql"))
            .args(["-XAt", url.as_str(), "-c", sql])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        )
    };
    assert_eq!(
        psql("CREATE TABLE kept AS SELECT 7 AS n"),
        (true, "SELECT 1".to_owned())
    );
    assert_eq!(psql("SHOW max_connections").1, "17");
    cluster.stop(StopMode::Fast);
    assert!(!psql("SELECT 1").0);
    drop(cluster);

    let mut again = Cluster::open(oldest(), &dir.path().join("data"), options).unwrap();
    again.start().unwrap();
    assert_eq!(psql("SELECT n FROM kept").1, "7");

    let mut wrong = PostgresTarget::new(url.clone());
    wrong.url.set_password(Some("wrong-secret")).unwrap();
    let error = probe(&wrong).unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    assert!(!error.is_retryable());
    assert!(!format!("{error:?}").contains("wrong-secret"));
}

#[test]
fn a_taken_port_is_named() {
    let dir = passable_dir();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let options = ClusterOptions {
        password: Some("secret".to_owned()),
        port: Some(port),
        ..options(dir.path().join("socket"))
    };
    let mut cluster = Cluster::create(oldest(), &dir.path().join("data"), options).unwrap();
    let error = cluster.start().unwrap_err();
    assert!(
        matches!(error, ClusterError::PortTaken { port: taken } if taken == port),
        "{error}"
    );
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    let newest = majors().pop().unwrap();
    assert_eq!(ServerBinaries::find(0, &extra_dirs()).unwrap().major, newest.major);
    let error = ServerBinaries::find(99, &extra_dirs()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("here is {}", newest.major)) && error.contains("postgresql-99"),
        "{error}"
    );

    let dir = passable_dir();
    let long = dir.path().join("x".repeat(90));
    let refused = Cluster::create(oldest(), &dir.path().join("data"), options(long));
    assert!(matches!(refused, Err(ClusterError::SocketPath { .. })));
    let open_port = ClusterOptions {
        port: Some(1),
        ..options(dir.path().join("socket"))
    };
    assert!(matches!(
        Cluster::create(oldest(), &dir.path().join("data"), open_port),
        Err(ClusterError::Options { .. })
    ));
    let bad_setting = ClusterOptions {
        settings: vec![("no_such_setting".to_owned(), "1".to_owned())],
        ..options(dir.path().join("socket"))
    };
    let mut cluster = Cluster::create(oldest(), &dir.path().join("data"), bad_setting).unwrap();
    let error = cluster.start().unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn a_folder_that_holds_something_else_is_left_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = passable_dir();
    let precious = dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "x").unwrap();
    let owner = |path: &std::path::Path| (path.metadata().unwrap().uid(), path.metadata().unwrap().mode());
    let before = owner(&precious);
    let refused = Cluster::create(oldest(), &precious, options(dir.path().join("socket")));
    assert!(matches!(refused, Err(ClusterError::File(FileError::NotEmpty { .. }))));
    let mut cluster = Cluster::create(oldest(), &dir.path().join("data"), options(precious.clone())).unwrap();
    assert!(matches!(
        cluster.start(),
        Err(ClusterError::File(FileError::NotEmpty { .. }))
    ));
    assert_eq!(owner(&precious), before);
}

/// The child of this test: starts a server, tells its process id, and waits to be killed.
const CHILD_ENV: &str = "STRONGROOM_TEST_CLUSTER_DIR";

#[test]
fn a_server_dies_with_its_process_even_if_that_is_killed() {
    if let Some(dir) = std::env::var_os(CHILD_ENV) {
        let dir = std::path::PathBuf::from(dir);
        let mut cluster = Cluster::create(oldest(), &dir.join("data"), options(dir.join("socket"))).unwrap();
        cluster.start().unwrap();
        std::fs::write(dir.join("pid"), cluster.pid().unwrap().to_string()).unwrap();
        std::thread::park();
        return;
    }
    let dir = passable_dir();
    let name = "cluster::a_server_dies_with_its_process_even_if_that_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD_ENV, dir.path())
        .spawn()
        .unwrap();
    let read_pid = || {
        std::fs::read_to_string(dir.path().join("pid"))
            .ok()?
            .parse::<u32>()
            .ok()
    };
    wait_for("the server to start", || read_pid().is_some());
    let pid = read_pid().unwrap();
    assert!(is_running(pid));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the server to die", || !is_running(pid));
}

fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
