//! The API of the system before, as an adapter over the real one.

use evenkeel_model::Definition;
use evenkeel_proto::crawler::{NodeSpec, ResourceSpec, crawler_master_server::CrawlerMaster};
use tonic::{Request, Response, Status};

use super::service::{Service, name};
use crate::control::resources::PutMode;

#[tonic::async_trait]
impl CrawlerMaster for Service {
    /// The id, the node and the time of a request are the cluster's to give, as they always were: only the name counts.
    async fn add_resource(&self, request: Request<ResourceSpec>) -> Result<Response<NodeSpec>, Status> {
        let definition = Definition::named(name(&request.into_inner().name)?);
        let answer = self.put(definition, PutMode::Add, 0).await?;
        let (worker, address) = answer.node.map(|(worker, address)| (worker.to_string(), address)).unwrap_or_default();
        Ok(Response::new(NodeSpec { id: worker, address }))
    }

    async fn delete_resource(&self, request: Request<ResourceSpec>) -> Result<Response<()>, Status> {
        self.delete(name(&request.into_inner().name)?, None).await?;
        Ok(Response::new(()))
    }
}
